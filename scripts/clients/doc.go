// Package clients holds the test behind docs/clients.md: it runs network clients
// in a bottle, behind the egress proxy. It has no code of its own. `make test` runs
// the clients that the test host's usual image has. All of them need an image of
// their own, and a build tag: make clients.
package clients
