"""Parts that know no project: errors, device, files, reader, checkpoints, embedding tables, tracking."""
