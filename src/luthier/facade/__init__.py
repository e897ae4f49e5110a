"""Names that scripts for other fine-tuning libraries use, translated to what luthier does."""
