"""The sandbox's side of the network: it says what programs want to reach, and decides nothing.

- `dns` reads questions and writes answers; `names` gives each name an address of its own;
- `gate` is the way to the host: it hands over connections and asks about names;
- `service` answers DNS and takes in the connections that the kernel leads to us;
- `mirror` leads to the host's package mirror;
- `proxy` serves programs that would rather speak to an HTTP or SOCKS proxy.

The host judges every connection by the name it is for, whatever is said here.
"""
