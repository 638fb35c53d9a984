package main

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// message is a response of the Messages API; see
// https://platform.claude.com/docs/en/api/messages.
type message struct {
	ID           string        `json:"id"`
	Type         string        `json:"type"`
	Role         string        `json:"role"`
	Model        string        `json:"model"`
	Content      []outputBlock `json:"content"`
	StopReason   *string       `json:"stop_reason"`
	StopSequence *string       `json:"stop_sequence"`
	Usage        tokens        `json:"usage"`
}

// outputBlock is a block of text or, if ID is set, a tool use.
type outputBlock struct {
	Type  string            `json:"type"`
	Text  *string           `json:"text,omitempty"`
	ID    string            `json:"id,omitempty"`
	Name  string            `json:"name,omitempty"`
	Input map[string]string `json:"input,omitzero"`
}

type tokens struct {
	InputTokens  int `json:"input_tokens"`
	OutputTokens int `json:"output_tokens"`
}

func newMessage(n int, model string, r reply) message {
	m := message{ID: fmt.Sprintf("msg_%06d", n), Type: "message", Role: "assistant", Model: model,
		Usage: tokens{InputTokens: 10, OutputTokens: 5}}
	reason := "end_turn"
	if r.command != "" {
		reason = "tool_use"
		m.Content = []outputBlock{{Type: "tool_use", ID: fmt.Sprintf("toolu_%06d", n), Name: "Bash",
			Input: map[string]string{"command": r.command, "description": "Run the scripted command"}}}
	} else {
		m.Content = []outputBlock{{Type: "text", Text: &r.text}}
	}
	m.StopReason = &reason
	return m
}

// stream sends the message as server-sent events in the order described in
// https://platform.claude.com/docs/en/build-with-claude/streaming.
func (m message) stream(rw http.ResponseWriter) {
	rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-cache")
	s := sender{rw: rw, control: http.NewResponseController(rw)}
	start := m
	start.Content, start.StopReason, start.Usage.OutputTokens = []outputBlock{}, nil, 1
	s.send("message_start", map[string]any{"message": start})
	s.send("ping", map[string]any{})
	for i, b := range m.Content {
		s.sendBlock(i, b)
	}
	s.send("message_delta", map[string]any{
		"delta": map[string]any{"stop_reason": m.StopReason, "stop_sequence": m.StopSequence}, "usage": m.Usage})
	s.send("message_stop", map[string]any{})
}

type sender struct {
	rw      http.ResponseWriter
	control *http.ResponseController
}

func (s sender) sendBlock(index int, b outputBlock) {
	empty := ""
	start := outputBlock{Type: b.Type, Text: &empty}
	kind, field, text := "text_delta", "text", ""
	if b.Type == "tool_use" {
		start = outputBlock{Type: b.Type, ID: b.ID, Name: b.Name, Input: map[string]string{}}
		kind, field = "input_json_delta", "partial_json"
		input, err := json.Marshal(b.Input)
		if err != nil {
			panic(fmt.Sprintf("encode a tool's input: %v", err)) // strings only
		}
		text = string(input)
	} else {
		text = *b.Text
	}
	s.send("content_block_start", map[string]any{"index": index, "content_block": start})
	for _, part := range halves(text) {
		s.send("content_block_delta", map[string]any{"index": index,
			"delta": map[string]string{"type": kind, field: part}})
	}
	s.send("content_block_stop", map[string]any{"index": index})
}

// halves splits a text between two characters, so that clients must join the
// parts.
func halves(s string) []string {
	runes := []rune(s)
	middle := len(runes) / 2
	return []string{string(runes[:middle]), string(runes[middle:])}
}

// send writes and flushes an event. It ignores errors: the client has
// disconnected.
func (s sender) send(name string, fields map[string]any) {
	fields["type"] = name
	data, err := json.Marshal(fields)
	if err != nil {
		panic(fmt.Sprintf("encode event %s: %v", name, err)) // maps and strings only
	}
	_, _ = fmt.Fprintf(s.rw, "event: %s\ndata: %s\n\n", name, data)
	_ = s.control.Flush()
}
