package netns

import "errors"

// Subject is the part of the host that a Finding or a Problem is about.
type Subject string

// The subjects of Check.
const (
	SubjectPlugins    Subject = "CNI plugins"
	SubjectSubnet     Subject = "egress subnet"
	SubjectKernel     Subject = "kernel"
	SubjectForwarding Subject = "forwarding"
	SubjectFirewall   Subject = "firewall"
)

// Finding is something that Check found and that does not prevent a launch.
type Finding struct {
	Subject Subject
	Detail  string // a statement, without a period
	Fix     string // an imperative phrase, such as a command; empty if nothing needs a fix
}

// String returns the finding as one sentence.
func (f Finding) String() string {
	if f.Fix == "" {
		return f.Detail
	}
	return f.Detail + ": " + f.Fix
}

// Problem is an error that prevents a launch on this host. It wraps one of the errors
// below.
type Problem struct {
	Subject Subject
	Err     error
	Fix     string // an imperative phrase, such as a command
}

func (p *Problem) Error() string { return p.Err.Error() }

// Unwrap returns Err.
func (p *Problem) Unwrap() error { return p.Err }

var (
	// ErrNoPlugin is wrapped when a CNI plugin is missing.
	ErrNoPlugin = errors.New("missing CNI plugin")
	// ErrOverlap is wrapped when the host has another route into the egress
	// network's subnet.
	ErrOverlap = errors.New("subnet is in use")
	// ErrKernel is wrapped when the kernel refuses a namespace, a link or a rule
	// that every bottle needs.
	ErrKernel = errors.New("kernel refused")
)
