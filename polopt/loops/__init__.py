"""Who does what when."""
