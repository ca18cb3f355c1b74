"""One module per subcommand of `s3vol`; with `s3vol.cli` the composition root: they import everything, nothing them."""
