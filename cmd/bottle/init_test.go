package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// initLine matches a line of GODEBUG=inittrace=1 (package runtime, "Environment Variables").
var initLine = regexp.MustCompile(`(?m)^init (github\.com/bot-bottle/bottle\S*) @.* (\d+) bytes, \d+ allocs$`)

// maxInit is what a package of this module may allocate before main, in bytes. A compiled
// regular expression takes about 5 kB.
const maxInit = 8 << 10

// TestInitialization keeps the start of every command short. All packages of the program are
// also in that of this test.
func TestInitialization(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := initLine.FindAllSubmatch(out, -1)
	if len(lines) == 0 {
		t.Fatalf("no trace of initialization in\n%s", out)
	}
	for _, m := range lines {
		if string(m[1]) == "github.com/bot-bottle/bottle/cmd/bottle" {
			continue // with the variables of tests
		}
		if n, err := strconv.Atoi(string(m[2])); err != nil || n > maxInit {
			t.Errorf("package %s allocates %s bytes before main, more than %d: initialize its variables when they are used (internal/lazyregexp, sync.OnceValue)", m[1], m[2], maxInit)
		}
	}
}

// TestLazyExpressions compiles the expressions that the program compiles at their first use.
func TestLazyExpressions(t *testing.T) {
	packages := map[string][]*ast.File{} // by directory
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for dir, files := range packages {
		constants := map[string]ast.Expr{}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
					for i, name := range v.Names {
						constants[name.Name] = v.Values[i]
					}
				}
				return true
			})
		}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || !isSelector(call.Fun, "lazyregexp", "New") {
					return true
				}
				found++
				expr, ok := text(call.Args[0], constants)
				if !ok {
					t.Errorf("%s: an expression is not constant", dir)
				}
				if _, err := regexp.Compile(expr); err != nil {
					t.Errorf("%s: %v", dir, err)
				}
				return true
			})
		}
	}
	if found == 0 {
		t.Error("no expression was found")
	}
}

func isSelector(e ast.Expr, pkg, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// text evaluates literals, constants and their concatenation.
func text(e ast.Expr, constants map[string]ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.Ident:
		return text(constants[e.Name], constants)
	case *ast.BinaryExpr:
		x, xok := text(e.X, constants)
		y, yok := text(e.Y, constants)
		return x + y, xok && yok && e.Op == token.ADD
	}
	return "", false
}
