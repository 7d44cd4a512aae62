"""stub"""


def declared_formats(tokenizer, specs, template_kwargs):
    return ()
