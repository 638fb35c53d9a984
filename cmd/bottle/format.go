package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
)

// formatter formats one element of a list on one line.
type formatter func(v any) (string, error)

// parseFormat parses the value of --format: "json", or a Go template as docker's. It
// returns nil for "" and "table", the command's own output.
func parseFormat(format string) (formatter, error) {
	switch format {
	case "", "table":
		return nil, nil
	case "json":
		return func(v any) (string, error) {
			data, err := json.Marshal(v)
			return string(data), err
		}, nil
	}
	t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			data, err := json.Marshal(v)
			return string(data), err
		},
		"join": strings.Join,
	}).Parse(format)
	if err != nil {
		return nil, withHint(fmt.Errorf(textBadFormat, cleanTemplateError(err)), hintBadFormat)
	}
	return func(v any) (string, error) {
		var buf bytes.Buffer
		if err := t.Execute(&buf, v); err != nil {
			return "", withHint(fmt.Errorf(textBadFormat, cleanTemplateError(err)), hintBadFormat)
		}
		return buf.String(), nil
	}, nil
}

// cleanTemplateError removes the template's name, which is empty.
func cleanTemplateError(err error) string { return strings.TrimPrefix(err.Error(), "template: :") }

// printEach prints one line for each element.
func printEach[T any](a *app, show formatter, list []T) error {
	for _, v := range list {
		line, err := show(v)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.stdout, visible(line)); err != nil {
			return err
		}
	}
	return nil
}
