package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const messagesURL = "https://api.anthropic.com/v1/messages?beta=true"

const bashTool = `"tools":[{"name":"Read","input_schema":{}},{"name":"Bash","input_schema":{}}]`

func ask(t *testing.T, client *http.Client, body string) (int, string) {
	t.Helper()
	req := newRequest(t, http.MethodPost, messagesURL, body)
	req.Header.Set("X-Api-Key", "test-key")
	return fetch(t, client, req)
}

func TestMessagesScript(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	for _, c := range []struct{ name, body, stop, part string }{
		{"a prompt as a string", `{"model":"m","messages":[{"role":"user","content":"go"}],` + bashTool + `}`,
			"tool_use", `"name":"Bash","input":{"command":"echo made-in-bottle \u003e /workspace/proof.txt`},
		{"a prompt among reminders, then a system turn", `{"model":"m","messages":[{"role":"user","content":[
			{"type":"text","text":"<system-reminder>\nRUN: no\n</system-reminder>"},{"type":"text","text":"please\nRUN: ls -l\n"}]},
			{"role":"system","content":"be brief"}],` + bashTool + `}`,
			"tool_use", `"command":"ls -l"`},
		{"a tool result, as blocks", `{"model":"m","messages":[{"role":"user","content":"go"},{"role":"assistant","content":[]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":[{"type":"text","text":"one\ntwo"}]},
			{"type":"text","text":"<system-reminder>r</system-reminder>"}]},{"role":"system","content":[]}],` + bashTool + `}`,
			"end_turn", `"text":"TOOL-ROUND-DONE: one"`},
		{"a tool result, as a string", `{"model":"m","messages":[{"role":"user","content":[
			{"type":"tool_result","tool_use_id":"x","content":"made"}]}],` + bashTool + `}`,
			"end_turn", `"text":"TOOL-ROUND-DONE: made"`},
		{"no tools", `{"model":"m","messages":[{"role":"user","content":"a title"}]}`, "end_turn", `"text":"A short answer"`},
	} {
		status, body := ask(t, client, c.body)
		if status != 200 || !strings.Contains(body, `"stop_reason":"`+c.stop+`"`) || !strings.Contains(body, c.part) {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
}

func TestMessagesStream(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	status, body := ask(t, client, `{"model":"m","stream":true,"messages":[{"role":"user","content":"RUN: echo \"é\""}],`+bashTool+`}`)
	if status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	var names []string
	var input strings.Builder
	lines := bufio.NewScanner(strings.NewReader(body))
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			names = append(names, name)
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e struct {
			Type  string
			Delta struct {
				PartialJSON string `json:"partial_json"`
			}
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil || e.Type != names[len(names)-1] {
			t.Errorf("event %s has data %s (%v)", names[len(names)-1], data, err)
		}
		input.WriteString(e.Delta.PartialJSON)
	}
	want := "message_start ping content_block_start content_block_delta content_block_delta content_block_stop message_delta message_stop"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got events %s, want %s", got, want)
	}
	var tool struct{ Command string }
	if err := json.Unmarshal([]byte(input.String()), &tool); err != nil || tool.Command != `echo "é"` {
		t.Errorf("unexpected input of the tool: %s (%v)", input.String(), err)
	}
}

func TestMessagesErrors(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	if status, body := ask(t, client, `{"messages":`); status != 400 || !strings.Contains(body, "invalid_request_error") {
		t.Errorf("truncated body: %d %s", status, body)
	}
	if status, body := ask(t, client, `{"messages":[]}`); status != 400 {
		t.Errorf("no messages: %d %s", status, body)
	}
	resp, err := client.Do(newRequest(t, http.MethodPost, messagesURL, `{"messages":[{"role":"user","content":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("X-Should-Retry") != "false" {
		t.Errorf("without a key: %s, %v", resp.Status, resp.Header)
	}
	for url, want := range map[string]int{
		"https://api.anthropic.com/api/hello":    200,
		"https://api.anthropic.com/v1/messages":  404, // GET
		"https://api.anthropic.com/api/anything": 404,
	} {
		status, body := fetch(t, client, newRequest(t, http.MethodGet, url, ""))
		if status != want || !json.Valid([]byte(body)) {
			t.Errorf("GET %s: %d %s", url, status, body)
		}
	}
}

func TestMessagesLog(t *testing.T) {
	state := startWorld(t)
	client := newClient(t, state)
	for i := range keptBodies + 2 {
		req := newRequest(t, http.MethodPost, "https://api.anthropic.com/v1/messages/count_tokens",
			fmt.Sprintf(`{"model":"m%d","messages":[{"role":"user","content":"x"}]}`, i+1))
		req.Header.Set("Authorization", "Bearer secret-token")
		if status, body := fetch(t, client, req); status != 200 || body != "{\"input_tokens\":10}\n" {
			t.Fatalf("%d %s", status, body)
		}
	}
	kept, err := filepath.Glob(filepath.Join(state, "messages", "*"))
	if err != nil || len(kept) != keptBodies {
		t.Errorf("kept %d bodies, want %d (%v)", len(kept), keptBodies, err)
	}
	last, err := os.ReadFile(filepath.Join(state, "messages", "52.json"))
	if err != nil || !strings.Contains(string(last), `"m52"`) {
		t.Errorf("unexpected last body: %s, %v", last, err)
	}
	record, err := os.ReadFile(filepath.Join(state, "messages.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(record), "secret-token") || strings.Count(string(record), `"auth":"bearer"`) != keptBodies+2 {
		t.Errorf("unexpected message log: %s", record)
	}
}
