"""The wire protocol: the frames beside the published messages."""
