// Package hostrule decides about single requests to a host, where an egress policy says more
// than the host's name: by method and path, and for git by repository, direction and ref.
//
// It looks at requests that net/http has parsed in a terminated tunnel, and opens no
// connection itself. Rules only allow: what no rule of a host allows is refused.
//
// # Paths
//
// A path is compared after its escapes were decoded once. Servers disagree about dot
// segments, empty segments, backslashes, parameters after a semicolon and about escapes of
// those characters, so a request that has any of them is refused rather than interpreted.
// Paths are case-sensitive, and the query is not part of them. The path that was checked is
// sent on as the client wrote it.
//
// # Git
//
// The smart HTTP protocol (gitprotocol-http(5)) names the repository in the path and the
// direction in the service. What a push changes is in the first packets of its body
// (gitprotocol-pack(5), "Reference Update Request"), which are read before anything of the
// request is sent; the pack that follows them is only passed on. Of Git LFS, the batch, the
// locks and the basic transfers below info/lfs belong to a repository.
//
// # Limits
//
// A rule describes a request's form. It does not keep data from leaving in a permitted one:
// in a path, a query, a header, a body or the content of a push. APIs with one path for
// everything, such as GraphQL, can only be allowed or refused completely, and a server
// that reads the method from a form's body is not noticed.
package hostrule
