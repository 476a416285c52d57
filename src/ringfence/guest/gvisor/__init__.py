"""The guest as the first process of a gVisor sandbox: started as a program, not forked from a zygote."""
