package secret

import (
	"fmt"
	"log/slog"
)

// Secret is a value that cannot be printed by accident: every way of formatting
// or encoding it shows a placeholder.
//
// The value stands behind a pointer, which fmt prints as an address: it calls no
// method on what is in an unexported field, or for %p.
type Value struct{ value *string }

const hidden = "[hidden]"

// NewSecret takes a value into keeping.
func New(value string) Value { return Value{&value} }

// Reveal returns the value. It may be handed to the agent's process and to
// nothing else.
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
