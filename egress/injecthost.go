package egress

import "errors"

// ParseHost parses a DNS name with an optional port, and returns it in lower-case ASCII
// with its port; the default port is 443.
func ParseHost(s string) (string, error) {
	r, err := parseRule(s)
	switch {
	case err != nil:
		return "", err
	case r.Host[0] == '*':
		return "", errors.New("a wildcard is not a single host")
	case r.address().IsValid():
		return "", errors.New("an address is not a DNS name")
	case r.LastPort != 0:
		return "", errors.New("a range of ports is not a single port")
	case r.Port == 0:
		r.Port = portHTTPS
	}
	return joinHostPort(r.Host, r.Port), nil
}
