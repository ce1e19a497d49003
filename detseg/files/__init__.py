"""Files: written whole or not at all, locked, downloaded with resume, and untrusted ones read within bounds."""
