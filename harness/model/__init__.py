"""What a kernel must do with any sequence of operations on memory: the specification that the explorer checks. Pure."""
