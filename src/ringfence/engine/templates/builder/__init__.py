"""Building templates from steps: each step runs in a sandbox, and what it has written becomes a layer.

`build.TemplateBuilder` is the whole interface; `spec` has what goes in and comes out.
"""
