"""The built-in demo: a tool-using language model small enough to train from scratch on two CPU cores in minutes.

Problems are integer computations of several steps whose values the model can't compute without a tool; the tool is the
real sandbox. A short cold start on deliberately mixed behaviour gives a policy that can do the task but often does not;
GTPO then improves it. Everything runs through the same code as a large model.
"""
