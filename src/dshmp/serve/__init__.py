"""A web page to try sentences on videos (`dshmp serve`), with gradio, which the extra `web` installs."""
