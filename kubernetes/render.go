package kubernetes

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// render returns the objects as a stream of YAML documents after a comment.
func (e *export) render(objects []object) ([]byte, error) {
	var out bytes.Buffer
	for _, line := range e.comment() {
		out.WriteString(strings.TrimRight("# "+oneLine(line), " ") + "\n")
	}
	for _, o := range objects {
		out.WriteString("---\n")
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if err := enc.Encode(o); err != nil {
			return nil, fmt.Errorf("render %s %s: %w", o.Kind, o.Metadata.Name, err)
		}
		if err := enc.Close(); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// oneLine replaces what would end a comment.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff' || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, text)
}

// comment tells what the user does before and after applying the objects, and what was not
// carried over.
func (e *export) comment() []string {
	p, ns := e.plan, e.opt.Namespace
	lines := []string{
		"The agent " + p.Agent + " (bottle " + p.Bottle + ") for Kubernetes, made by bottle export kubernetes.",
		"docs/kubernetes.md says what the cluster has to provide.",
		"",
		"Images that the cluster has to be able to pull:",
		"  " + e.image,
	}
	if p.Build != nil {
		lines[len(lines)-1] += " (built by bottle build)"
	}
	if e.usesPipelock() {
		lines = append(lines, "  "+pinned(p.Proxy.Image, p.Proxy.Digest))
	}
	lines = append(lines, "  "+e.bottle+" (bottle's own)", "", "Create it, with the values of the variables, in bash:", "  kubectl create namespace "+ns)
	lines = append(lines, e.secretCommand()...)
	lines = append(lines, "  kubectl apply -f FILE",
		"Use it:",
		"  kubectl attach --namespace "+ns+" -it "+agentName+" -c "+agentName,
		"  kubectl logs --namespace "+ns+" deployment/"+proxyName+"    # what left and what was refused",
		"Remove it:",
		"  kubectl delete namespace "+ns,
	)
	if notes := e.notes(); len(notes) > 0 {
		lines = append(lines, "", "Not carried over:")
		for _, n := range notes {
			lines = append(lines, "  - "+n)
		}
	}
	return lines
}

func (e *export) usesPipelock() bool { return e.plan.Proxy.Kind == manifest.ProxyPipelock }

// secretCommand returns the commands that create the Secret, which name variables, files and
// programs, and no value. Values are read through pipes, so that they are in no argument
// that other users see.
func (e *export) secretCommand() []string {
	secrets := e.secrets()
	if len(secrets) == 0 {
		return nil
	}
	var before []string
	command := []string{"  kubectl create secret generic " + AgentSecret + " --namespace " + e.opt.Namespace}
	for _, v := range secrets {
		read := `printf %s "$` + v.From + `"`
		switch v.Source {
		case manifest.SourcePrompt:
			before = append(before, fmt.Sprintf("  read -rsp %s %s", quoted(v.Ask+" "), v.Name))
			read = `printf %s "$` + v.Name + `"`
		case manifest.SourceFile:
			read = `printf %s "$(cat ` + quoted(v.From) + `)"`
		case manifest.SourceCommand:
			words := make([]string, len(v.Command))
			for i, w := range v.Command {
				words[i] = quoted(w)
			}
			read = `printf %s "$(` + strings.Join(words, " ") + `)"`
		case provision.SourceLogin:
			read = `printf %s "$(cut -d= -f2- ` + quoted(v.From) + `)"`
		}
		command[len(command)-1] += ` \`
		command = append(command, fmt.Sprintf("    --from-file=%s=<(%s)", v.Name, read))
	}
	return append(before, command...)
}

var plainWord = lazyregexp.New(`^[A-Za-z0-9_./:=@%+,-]+$`)

// quoted returns a word for bash.
func quoted(word string) string {
	if plainWord().MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// notes are what the plan has and the objects have not, each with its replacement.
func (e *export) notes() []string {
	p := e.plan
	var notes []string
	if e.repo.URL == "" {
		notes = append(notes, "the working directory: the agent clones a git URL through the proxy (--repo), and pushes its work")
	}
	notes = append(notes,
		"bottle allow and deny: change egress in the manifest, and apply a new export",
		fmt.Sprintf("limits.pids (%d): the cluster's podPidsLimit applies", p.Limits.Pids),
	)
	notes = append(notes, Warnings(p, e.opt)...)
	if e.usesPipelock() {
		notes = append(notes, "ports of single hosts under pipelock: the NetworkPolicy opens the ports of all entries together")
	}
	if e.opt.NoWalls {
		notes = append(notes, "the walls in the pod: only the cluster's NetworkPolicy encloses the agent")
	}
	return notes
}
