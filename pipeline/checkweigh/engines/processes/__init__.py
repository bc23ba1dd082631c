"""What keeps a process and its descendants: the keeper, containers."""
