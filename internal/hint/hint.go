package hint

import (
	"errors"
	"fmt"
	"strings"
)

// Error is a failure with the advice that mends it.
type Error struct {
	Err  error
	Hint string // an imperative phrase: a command, a setting
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap is the failure itself.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the advice of the outermost Error in err's tree, or nothing.
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

// Problems is every mistake that was found at once, in the order in which a
// reader would mend them.
type Problems []error

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, err := range p {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap are the mistakes.
func (p Problems) Unwrap() []error { return p }

// Mistakes takes apart what was found at once: each can be told, and mended, by
// itself.
func Split(err error) []error {
	var p Problems
	p.Add(err)
	return p
}

// add appends err, unless it is nil; of several joined errors, each.
func (p *Problems) Add(err error) {
	if err == nil {
		return
	}
	many, ok := err.(interface{ Unwrap() []error })
	// An error that wraps several with words of its own is one mistake.
	if ok && Problems(many.Unwrap()).Error() == err.Error() {
		for _, e := range many.Unwrap() {
			p.Add(e)
		}
		return
	}
	*p = append(*p, err)
}

// err is nil when nothing was found.
func (p Problems) Err() error {
	switch len(p) {
	case 0:
		return nil
	case 1:
		return p[0]
	}
	return p
}

// wrapHint puts words before an error and keeps its hint with it.
func Wrap(err error, words string) error {
	if hint := Of(err); hint != "" {
		return &Error{Err: fmt.Errorf("%s: %w", words, err), Hint: hint}
	}
	return fmt.Errorf("%s: %w", words, err)
}
