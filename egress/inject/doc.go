// Package inject lets an agent use credentials that it does not have. The agent
// gets a placeholder in the format of the real value. This package terminates the
// agent's TLS for the few hosts that a credential is meant for, and replaces the
// placeholder in requests to them. It also terminates the hosts of [Config.Hosts], where
// [Config.Check] decides about each request. Every other tunnel stays end-to-end and
// never reaches this package.
//
// The proxy decides whether a CONNECT is allowed. If [Injector.Terminates] reports
// the target, it then calls [Injector.ServeConn] with the client's connection instead
// of relaying bytes. The package resolves no names and checks no addresses: it
// connects through [Config.Dial] only. A credential never makes a host reachable.
//
// # Binding
//
// A credential is bound to hosts with ports. The server name in the ClientHello and
// the Host (or :authority) of every request must be those of the tunnel, so that a
// request cannot name a second host behind the same server. The certificate of the
// upstream must be valid for the host, so that DNS cannot move the credential. A
// placeholder in a request to a host that it is not bound to, or in a part of the
// request that it is not bound to, refuses the request and is reported. Headers that
// servers store or send back as a matter of course, such as User-Agent and Referer,
// are such parts unless they are named.
//
// # Certificates
//
// A [CA] exists for one bottle. Its certificate is constrained to the terminated hosts,
// and code here signs only those exact names: RFC 5280 constraints
// also permit the names below. Its key is in memory, or on tmpfs if the proxy must
// survive a restart ([CA.Marshal]).
//
// # Protocols
//
// HTTP is parsed by net/http on both sides, so that one parser's view of a request is
// what the upstream gets. The upstream's choice of HTTP/2 or HTTP/1.1 is made first
// and is then the only offer to the client. Each client connection has upstream
// connections of its own. Bodies are streamed and every read is flushed.
//
// # Echoes
//
// A response that contains the real value gets the placeholder instead, in headers,
// trailers and bodies, also if the value is escaped for URLs, JSON or HTML, or is
// encoded in base64 or hexadecimal. Bytes that are common to the value and the
// placeholder are never held back, and a placeholder shares its first characters with
// the value. A stream is therefore delayed only while the rest of a value is
// outstanding. Clients may request gzip only, which is decoded here.
//
// What this cannot prevent: an API that returns a value in another encoding, or in
// parts (ranges, for example), hands it over. An allowed API can be used through the
// agent while it runs. Messages of a websocket have no placeholders replaced; echoes
// in them are replaced if the placeholder has the value's length and the messages
// are not compressed. Credentials that are used to sign, such as those of AWS, cannot
// be replaced in a request.
package inject
