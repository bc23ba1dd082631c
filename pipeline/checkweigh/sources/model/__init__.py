"""What lies in a model directory, what is derived from it, how its template renders."""
