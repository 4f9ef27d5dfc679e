"""How compiled functions run on each backend: the only package that names one."""
