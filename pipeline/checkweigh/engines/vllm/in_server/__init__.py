"""What runs inside a vLLM server; nothing else lies in this folder, which the server's import path has."""
