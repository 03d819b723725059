"""Operations, memory and time that stages take, on this machine or a named GPU."""
