"""The mappings on real databases."""
