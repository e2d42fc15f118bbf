"""What runs inside a sandbox: standard library only, sent as text, so that there is no file of it to replace."""
