"""Label the rows of a file or stream: input rows, output rows, progress, and how an interrupted command goes on."""
