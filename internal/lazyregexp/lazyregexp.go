// Package lazyregexp compiles regular expressions when they are first used. Every command
// of bottle initializes all packages of the program, and compiling their expressions took a
// fifth of that time.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that returns the compiled expression. It panics if the expression is
// invalid: TestInitialization compiles those of all package variables.
func New(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
