"""An engine in a child process: the parent's side, the wire between them, the child's main loop."""
