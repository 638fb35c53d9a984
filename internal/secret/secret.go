// Package secret provides a string type that cannot be printed by accident.
package secret

import (
	"fmt"
	"log/slog"
)

// Value is a string that cannot be printed by accident: every way of formatting or
// encoding it shows a placeholder.
//
// The string is behind a pointer, which fmt prints as an address, because fmt does not
// call methods on unexported fields or for %p.
type Value struct{ value *string }

const hidden = "[hidden]"

// New returns a secret with the given value.
func New(value string) Value { return Value{&value} }

// Reveal returns the value. It may be passed to the agent's process and to nothing
// else.
func (s Value) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// Format implements fmt.Formatter for every verb.
func (s Value) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText implements encoding.TextMarshaler.
func (s Value) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// LogValue implements slog.LogValuer.
func (s Value) LogValue() slog.Value { return slog.StringValue(hidden) }
