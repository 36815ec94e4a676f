"""Out of Secateur, to where models run: files of other formats."""
