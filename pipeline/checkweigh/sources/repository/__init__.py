"""Git: revisions, changes, files of another revision."""
