// Package hint provides errors with a suggested fix, and lists of errors that
// are reported together. Commands print the hint on a line of its own.
package hint

import (
	"errors"
	"fmt"
	"strings"
)

// Error is an error with a suggested fix.
type Error struct {
	Err  error
	Hint string // an imperative phrase: a command, a setting
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without the hint.
func (e *Error) Unwrap() error { return e.Err }

// Of returns the hint of the outermost Error in err's tree, or an empty string.
func Of(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	if e, ok := errors.AsType[hinted](err); ok {
		return e.Hint()
	}
	return ""
}

// hinted is an error type of another package that has advice.
type hinted interface {
	error
	Hint() string
}

// Problems is a list of independent errors that are reported together, in the order in
// which a reader would fix them.
type Problems []error

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, err := range p {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors.
func (p Problems) Unwrap() []error { return p }

// Split returns the independent errors of err, each of which can be reported and fixed
// on its own.
func Split(err error) []error {
	var p Problems
	p.Add(err)
	return p
}

// Add appends err, unless it is nil. Joined errors are appended one by one.
func (p *Problems) Add(err error) {
	if err == nil {
		return
	}
	many, ok := err.(interface{ Unwrap() []error })
	// An error that wraps several with a text of its own is a single error.
	if ok && Problems(many.Unwrap()).Error() == err.Error() {
		for _, e := range many.Unwrap() {
			p.Add(e)
		}
		return
	}
	*p = append(*p, err)
}

// Err returns nil if the list is empty, the error itself if there is only one, and
// else the list.
func (p Problems) Err() error {
	switch len(p) {
	case 0:
		return nil
	case 1:
		return p[0]
	}
	return p
}

// Wrap prefixes an error with a context and keeps its hint.
func Wrap(err error, context string) error {
	if hint := Of(err); hint != "" {
		return &Error{Err: fmt.Errorf("%s: %w", context, err), Hint: hint}
	}
	return fmt.Errorf("%s: %w", context, err)
}
