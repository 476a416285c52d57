"""The host's side of the network: judges, connects, relays and accounts for what sandboxes want to reach.

It runs in a process of its own that holds no privilege, and of secrets those that it sends for others
(`main`); the engine talks to it by `link`. A sandbox is known by its socket, never by what it says.

- `policy`: what a tenant and the operator allow, and the sentence for what they do not;
- `addresses`: what nobody may reach unless the operator names it; `hosts`: the syntax of names;
- `transforms`, `opened`, `http1`: headers that are set on the way out, and connections opened for that;
- `mirror`: the package indexes, and a cache of their files;
- `packages`: the hosts of the package indexes this machine uses;
- `resolver`, `dialer`: from a name to a connection with an address that was judged;
- `inspection`: that a connection is for the name it was allowed for;
- `relay`: bytes both ways; `gateway`: one sandbox's connections, limits and account;
- `guest_channel`: what its guest asks for, and is told.
"""
