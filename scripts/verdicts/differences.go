package main

// differences are the requests in whose verdict pipelock is known to differ from
// the built-in proxy, with the verdict that it gives and the reason. Observed with
// 2.1.2, 2.2.0, 2.3.0 and the development version after it. What is not listed must
// agree, and what is listed must differ, so that a change in a new version shows.
var differences = map[string]difference{
	"port 443 of range.verdict.test":                     {allowed, noPorts},
	"port 8443 of api.verdict.test":                      {allowed, noPorts},
	"port 8443 of a.wild.verdict.test":                   {allowed, noPorts},
	"port 443 of port.verdict.test":                      {allowed, noPorts},
	"port 443 of git.verdict.test":                       {allowed, noPorts},
	"port 8443 of git.verdict.test":                      {allowed, noPorts},
	"port 443 of git2.verdict.test":                      {allowed, noPorts},
	"port 8443 of git2.verdict.test":                     {allowed, noPorts},
	"websocket: to a port that the entry does not allow": {allowed, noPorts},

	"port 22 of git.verdict.test":                     {refused, silentClient},
	"port 2222 of git2.verdict.test":                  {refused, silentClient},
	"half-close: by the client, without a byte":       {refused, silentClient},
	"half-close: by the server, the client continues": {refused, silentClient},

	"CONNECT api.verdict.test for api.verdict.test":      {allowed, "443 is the default port of CONNECT"},
	"CONNECT api.verdict.test:0443 for api.verdict.test": {allowed, "ports may have leading zeros"},
	"GET http://user:pw@api.verdict.test/":               {allowed, "user information in a URL is forwarded"},

	"CONNECT api.verdict.test:443 without a server name": {allowed, noTLS},
	"ssh on 443":                                {allowed, noTLS},
	"HTTP on 443":                               {allowed, noTLS},
	"HTTP in a tunnel, for another host":        {allowed, noTLS},
	"HTTP in a tunnel, for another port":        {allowed, noTLS},
	"HTTP in a tunnel, a URL":                   {allowed, noTLS},
	"zeros on 443":                              {allowed, noTLS},
	"a record of another kind":                  {allowed, noTLS},
	"websocket: without TLS, in a tunnel to 80": {allowed, noTLS},

	"a large body":            {refused, bodyLimit},
	"a large body, in chunks": {refused, bodyLimit},
	"a large body, and back":  {refused, bodyLimit},
	"a large answer":          {refused, "scanning it takes longer than this program waits"},

	"redirect 302 to /":                           {refused, followed},
	"redirect 302 to http://a.wild.verdict.test/": {refused, followed},
	"redirect 302 to http://API.verdict.test:80/": {refused, followed},
	"redirect 302 to https://api.verdict.test":    {refused, followed},
}

type difference struct{ got, why string }

// Reasons that several requests share.
const (
	noPorts      = "its lists have no ports: a packet filter enforces them"
	silentClient = "a client that sends nothing within 5 s is cut"
	noTLS        = "only the server name of a TLS handshake that has one is checked"
	bodyLimit    = "a request body of more than 5 MB is refused"
	followed     = "it follows redirects itself, so that the client sees none"
)

// expected is what another proxy than the built-in one must answer, by its kind.
func expected(r request) (verdict, why string) {
	if d, ok := differences[r.name]; ok {
		return d.got, " (known difference: " + d.why + ")"
	}
	return kind(r.want), ""
}
