// Package arch_test holds the structure of the code: who may import whom, and
// what no package has.
package arch_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/slash32/slash32/"

// levels are the packages below pkg/. A package imports only those of smaller
// numbers; what lies in a folder of a package is of its level and may import it.
var levels = map[string]int{
	"mac": 0, "marks": 0, "names": 0, "problem": 0, "version": 0, "yamltree": 0,
	"annotation": 1, "config": 1, "lease": 1, "traffic": 1, "wire": 1,
	"firewall": 2, "intent": 2, "responder": 2, "state": 2,
	"plan": 3, "pool": 3, "source": 3,
	"control": 4, "evidence": 4, "kernel": 4, "launch": 4, "probe": 4, "rawsock": 4, "relay": 4, "spool": 4, "upstream": 4, "userhook": 4, "virt": 4,
	"cli": 5, "doctor": 5, "hook": 5, "reconcile": 5, "vmlink": 5,
	"agent": 6,
}

// forbidden are dependencies, however indirect, that a package must not have.
var forbidden = []struct {
	packages []string
	deps     []string
	why      string
}{
	{
		[]string{"pkg/responder", "pkg/rawsock", "pkg/vmlink", "pkg/control", "cmd/slash32-responder"},
		[]string{"libvirt.org/", "github.com/vishvananda/netlink", "github.com/mdlayher/netlink", "github.com/google/nftables", "net/http", "crypto/tls"},
		"a responder is a small process that faces a guest",
	},
	{
		[]string{"cmd/slash32-hook", "cmd/slash32", "cmd/slash32-responder"},
		[]string{"libvirt.org/"},
		"only the agent links libvirt; a hook that calls it deadlocks",
	},
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Name       string
	Doc        string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module) }

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json", "-tags=libvirt_dlopen", "./cmd/...", "./pkg/...", "./test/...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// root is the package below pkg/ that a path lies in: "kernel" of
// pkg/kernel/kerneltest.
func root(path string) string {
	rest, ok := strings.CutPrefix(path, "pkg/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

func TestImportOrder(t *testing.T) {
	for _, p := range list(t) {
		from := root(p.path())
		if from == "" {
			continue // cmd and test stand above all
		}
		level, ok := levels[from]
		if !ok {
			t.Errorf("%s has no level: give it one here", p.path())
			continue
		}
		for _, i := range p.Imports {
			path, ours := strings.CutPrefix(i, module)
			to := root(path)
			switch {
			case !ours:
			case to == "":
				t.Errorf("%s imports %s", p.path(), path)
			case to == from && p.path() != "pkg/"+from: // a folder of the package
			case levels[to] >= level:
				t.Errorf("%s (level %d) imports %s (level %d)", p.path(), level, path, levels[to])
			}
		}
	}
}

func TestOnlyVirtImportsLibvirt(t *testing.T) {
	for _, p := range list(t) {
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "libvirt.org/") && p.path() != "pkg/virt" {
				t.Errorf("%s imports %s", p.path(), i)
			}
		}
	}
}

func TestForbiddenDependencies(t *testing.T) {
	deps := map[string][]string{}
	for _, p := range list(t) {
		deps[p.path()] = p.Deps
	}
	for _, f := range forbidden {
		for _, name := range f.packages {
			have, ok := deps[name]
			if !ok {
				t.Errorf("there is no package %s", name)
			}
			for _, d := range have {
				for _, no := range f.deps {
					if d == strings.TrimSuffix(no, "/") || strings.HasPrefix(d, strings.TrimSuffix(no, "/")+"/") {
						t.Errorf("%s depends on %s: %s", name, d, f.why)
					}
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles)+len(p.CgoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.path())
		}
		switch p.Name {
		case "util", "utils", "common", "helpers", "misc":
			t.Errorf("%s: a name that says nothing", p.path())
		}
	}
}

// TestNoInit holds that importing a package does nothing.
func TestNoInit(t *testing.T) {
	for _, dir := range []string{"cmd", "pkg", "test"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" {
				return err
			}
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
					t.Errorf("%s: init()", files.Position(fn.Pos()))
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
