"""The boundary to what others wrote: files, text, the terminal and the current directory."""
