package egress

import (
	"fmt"
	"net/http"
	"net/netip"
)

// scannerDeny is the Scanner of what a deny entry refuses.
const scannerDeny = "denylist"

// refuseAddrs refuses a name that resolves to a denied address, because a
// name must not get around the deny list. As for special addresses, one is enough.
func (p Policy) refuseAddrs(host string, addrs []netip.Addr, port int) *refusalError {
	for _, addr := range addrs {
		if entry := p.denied(addr.String(), true, port); entry != "" {
			return &refusalError{
				status: http.StatusForbidden, scanner: scannerDeny, rule: entry,
				reason: fmt.Sprintf("denied by the entry %s: %s resolves to %s", entry, host, addr),
			}
		}
	}
	return nil
}

// denied returns the entry of the deny list for a host in canonical form; empty
// if there is none.
func (p Policy) denied(name string, isAddr bool, port int) string {
	for _, r := range p.Deny {
		if r.matchesHost(name, isAddr) && r.deniesPort(port) {
			return r.String()
		}
	}
	return ""
}
