"""Files that a stranger may send, given to the scripts as a user would: refused by name, or the same result as ever."""
