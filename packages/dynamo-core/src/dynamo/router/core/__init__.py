"""The pure part of the router: no event loop, no sockets, no clock, no client; `now` is passed in."""
