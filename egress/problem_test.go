package egress

import (
	"net/netip"
	"strings"
	"testing"
)

// Entries that can never work are reported with the reason and advice, and those
// that work are not.
func TestProblems(t *testing.T) {
	segment := netip.MustParsePrefix("10.77.0.0/30")
	for _, tc := range []struct {
		entries Entries
		want    string // errors, one a line; "" for none
		hint    string // a part of the first one's
	}{
		{Entries{Allow: []string{"example.com", "*.example.com:8443", "192.0.2.7", "8.8.8.8:53", "intranet"}}, `allow entry "192.0.2.7": always refused: a special address that allow_private does not list`, "add 192.0.2.7 to egress.allow_private"},
		{Entries{Allow: []string{"localhost"}}, `allow entry "localhost": cannot be reached: resolves to a loopback address`, "without the proxy"},
		{Entries{Allow: []string{"LOCALHOST.:8080"}}, `allow entry "LOCALHOST.:8080": cannot be reached: resolves to a loopback address`, "without the proxy"},
		{Entries{Allow: []string{"*.localhost", "app.localhost:3000"}}, `allow entry "*.localhost": cannot be reached: resolves to a loopback address
allow entry "app.localhost:3000": cannot be reached: resolves to a loopback address`, ""},
		{Entries{Allow: []string{"localhost.example.com", "notlocalhost"}}, "", ""},
		{Entries{Allow: []string{"127.0.0.1"}}, `allow entry "127.0.0.1": cannot be reached: a loopback address`, "without the proxy"},
		{Entries{Allow: []string{"127.0.0.1:8080"}, AllowPrivate: []string{"127.0.0.0/8"}}, `allow entry "127.0.0.1:8080": cannot be reached: a loopback address
allow_private entry "127.0.0.0/8": cannot be allowed: it includes addresses of the proxy itself`, ""},
		{Entries{Allow: []string{"::1"}, AllowPrivate: []string{"::1"}}, `allow entry "::1": cannot be reached: a loopback address
allow_private entry "::1": cannot be allowed: it includes addresses of the proxy itself`, ""},
		{Entries{Allow: []string{"0.0.0.0:80"}, AllowPrivate: []string{"0.0.0.0"}}, `allow entry "0.0.0.0:80": cannot be reached: the unspecified address
allow_private entry "0.0.0.0": cannot be allowed: it includes addresses of the proxy itself`, ""},
		{Entries{Allow: []string{"10.77.0.1:8888", "10.77.0.2"}, AllowPrivate: []string{"10.0.0.0/8"}}, `allow entry "10.77.0.1:8888": cannot be reached: an address of the sandbox itself
allow entry "10.77.0.2": cannot be reached: an address of the sandbox itself`, "without the proxy"},
		{Entries{Allow: []string{"10.77.0.4"}, AllowPrivate: []string{"10.0.0.0/8"}}, "", ""},
		{Entries{Allow: []string{"169.254.169.254"}}, `allow entry "169.254.169.254": always refused: a link-local address that allow_private does not list`, "egress.allow_private"},
		{Entries{Allow: []string{"169.254.169.254"}, AllowPrivate: []string{"169.254.169.254"}}, "", ""},
		{Entries{Allow: []string{"168.63.129.16"}, AllowPrivate: []string{"168.63.129.16"}}, "", ""},
		{Entries{Allow: []string{"a.example"}, AllowPrivate: []string{"localhost", "126.0.0.0/7", "10.77.0.2", "a.example"}}, `allow_private entry "localhost": cannot be allowed: it includes addresses of the proxy itself
allow_private entry "126.0.0.0/7": cannot be allowed: it includes addresses of the proxy itself
allow_private entry "10.77.0.2": cannot be allowed: it includes addresses of the proxy itself`, ""},
		{Entries{Allow: []string{"224.0.0.1"}}, `allow entry "224.0.0.1": always refused: a multicast address that allow_private does not list`, ""},
		{Entries{Allow: []string{"10.1.2.3"}, SSH: []string{"192.168.1.2"}}, `allow entry "10.1.2.3": always refused: a private address that allow_private does not list
ssh entry "192.168.1.2": always refused: a private address that allow_private does not list`, "add 10.1.2.3 to"},
		{Entries{Allow: []string{"10.1.2.3"}, SSH: []string{"192.168.1.2"}, AllowPrivate: []string{"10.0.0.0/8", "192.168.1.2"}}, "", ""},
		{Entries{Allow: []string{"[fe80::1]"}}, `allow entry "[fe80::1]": cannot be reached: sandboxes have no IPv6`, "IPv4"},
		{Entries{Allow: []string{"[2606:4700::1111]:443"}}, `allow entry "[2606:4700::1111]:443": cannot be reached: sandboxes have no IPv6`, "IPv4"},
		{Entries{Allow: []string{"a.example", "b.example:3000-3010"}, Deny: []string{"*.example"}}, `allow entry "a.example": always refused: denied by the entry *.example
allow entry "b.example:3000-3010": always refused: denied by the entry *.example`, "remove one"},
		{Entries{Allow: []string{"a.example", "*.example"}, Deny: []string{"a.example:443", "b.example"}}, "", ""},
		{Entries{Allow: []string{"a.example"}, Deny: []string{"b.example", "10.0.0.1"}}, `deny entry "b.example": has no effect: no entry allows this host`, ""},
		{Entries{Allow: []string{"a.example"}, AllowPrivate: []string{"b.example", "10.0.0.0/8"}}, `allow_private entry "b.example": has no effect: no entry of allow or ssh allows it`, "egress.allow"},
		{Entries{Allow: []string{"8.8.8.8"}, AllowPrivate: []string{"10.0.0.0/8"}}, `allow_private entry "10.0.0.0/8": has no effect: no entry of allow or ssh allows it`, ""},
		{Entries{SSH: []string{"git.corp.example"}, AllowPrivate: []string{"*.corp.example"}}, "", ""},
		{Entries{Allow: []string{"127.0.0.1", "*"}}, "", ""}, // invalid: reported by Policy
	} {
		var got []string
		problems := tc.entries.Problems(segment)
		for _, p := range problems {
			got = append(got, p.Error())
			if harmless := strings.HasPrefix(p.Reason, "has no effect"); harmless != p.Harmless {
				t.Errorf("%+v: harmless is %v", p, p.Harmless)
			}
		}
		if text := strings.Join(got, "\n"); text != tc.want {
			t.Errorf("%+v:\n%s\nwant:\n%s", tc.entries, text, tc.want)
		}
		if tc.hint != "" && (len(problems) == 0 || !strings.Contains(problems[0].Hint(), tc.hint)) {
			t.Errorf("%+v: the hint does not contain %q", tc.entries, tc.hint)
		}
	}
}

// What is reported as always refused is refused by the proxy, and what is not
// reported reaches the dialer: the control.
func TestProblemsMatchTheDialer(t *testing.T) {
	for _, tc := range []struct {
		addr    string
		private []string
	}{
		{"127.0.0.1", nil}, {"10.1.2.3", nil}, {"10.1.2.3", []string{"10.0.0.0/8"}}, {"169.254.169.254", nil},
		{"169.254.169.254", []string{"169.254.169.254"}}, {"100.64.0.1", nil}, {"100.64.0.1", []string{"100.64.0.0/10"}},
		{"168.63.129.16", nil}, {"168.63.129.16", []string{"168.63.129.16"}}, {"8.8.8.8", nil}, {"240.0.0.1", nil},
		{"255.255.255.255", nil}, {"0.0.0.0", nil}, {"192.88.99.1", nil},
	} {
		e := Entries{Allow: []string{tc.addr}, AllowPrivate: tc.private}
		p, err := e.Policy()
		if err != nil {
			t.Fatal(err)
		}
		_, err = newDialer(p, testDNS, 0).resolve(t.Context(), tc.addr)
		if refused, reported := err != nil, len(e.Problems()) > 0; refused != reported {
			t.Errorf("%s with allow_private %v: refused %v, reported %v", tc.addr, tc.private, refused, reported)
		}
	}
}
