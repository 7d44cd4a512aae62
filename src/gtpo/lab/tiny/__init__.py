"""The embedded default: a tool-using language model small enough to train from nothing on two CPU cores in minutes.

Problems are integer computations of several steps whose values the model can't compute in its head; the tool is the
real sandbox. A short cold start on deliberately mixed behaviour leaves a policy that can do the task but often does
not; GTPO then raises it. Everything runs through the same code as a large model.
"""
