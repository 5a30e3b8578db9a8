package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/source"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// checkJSON is what "check -j" prints.
type checkJSON struct {
	VM        string       `json:"vm,omitempty"`
	Annotated bool         `json:"annotated"`
	Problems  problem.List `json:"problems"`
}

func (c *command) check(ctx context.Context, args []string) error {
	conf, ps := config.Load(c.Dirs.Config)
	var out checkJSON
	if len(args) == 0 {
		ps = append(ps, c.checkFiles()...)
	} else {
		xml, err := c.xml(ctx, args[0])
		if err != nil {
			return err
		}
		r := c.examine(ctx, xml, conf)
		out.VM, out.Annotated = r.Domain.Name, r.Annotated
		ps = append(ps, r.Problems...)
	}
	out.Problems = append(problem.List{}, ps...)
	var err error
	switch {
	case c.json:
		err = c.printJSON(out)
	case len(args) == 1 && !out.Annotated && len(ps) == 0:
		err = c.print(oneLine(out.VM) + ": not annotated: slash32 leaves it alone\n")
	case len(ps) == 0:
		err = c.print("ok\n")
	default:
		err = c.print(text(ps))
	}
	if err == nil && len(ps.Fatal()) > 0 {
		err = &failure{code: ExitError}
	}
	return err
}

func text(ps problem.List) string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// checkFiles checks the files of domains by themselves; what they mean for a
// VM depends on its XML.
func (c *command) checkFiles() problem.List {
	var ps problem.List
	dir := filepath.Join(c.Dirs.Config, "domains.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.List{{Code: problem.EConfig, File: dir, What: err.Error(), Fix: "make the directory readable, or use sudo"}}
	}
	for _, e := range entries {
		base, yaml := strings.CutSuffix(e.Name(), ".yaml")
		if !yaml || strings.HasPrefix(base, ".") {
			continue
		}
		path, b, err := config.DomainFile(c.Dirs.Config, base, "")
		switch {
		case err != nil:
			ps = append(ps, problem.Problem{Code: problem.EConfig, File: path, What: err.Error(), Fix: "make the file readable and smaller than 1 MiB"})
		case b == nil:
			ps = append(ps, problem.Problem{Code: problem.EConfig, File: filepath.Join(dir, e.Name()), What: "no domain's settings are read from a file of this name", Fix: "name it by the domain's UUID"})
		default:
			_, more := annotation.ParseYAML(path, b)
			ps = append(ps, more...)
		}
	}
	return ps
}

// xml is the XML that the argument stands for: standard input, a file, or a
// VM that the agent knows.
func (c *command) xml(ctx context.Context, arg string) ([]byte, error) {
	switch {
	case arg == "-":
		b, err := io.ReadAll(io.LimitReader(c.Stdin, annotation.MaxXML+1))
		if err != nil {
			return nil, fail(ExitError, "read standard input: %w", err)
		}
		return b, nil
	case strings.HasSuffix(arg, ".xml") || strings.Contains(arg, "/"):
		f, err := os.Open(arg)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(ExitNotFound, "there is no file %s. Fix: virsh dumpxml --inactive VM > %[1]s", arg)
		}
		if err != nil {
			return nil, fail(ExitError, "read the domain's XML: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, annotation.MaxXML+1))
		if err != nil {
			return nil, fail(ExitError, "read the domain's XML: %w", err)
		}
		return b, nil
	}
	reply, err := c.ask(ctx, control.Request{Op: "xml", VM: arg})
	if err != nil {
		var f *failure
		if errors.As(err, &f) && (f.code == ExitNotFound || f.code == ExitNotReady) {
			return nil, fail(f.code, "%w; without the agent: virsh dumpxml --inactive VM | slash32 check -", f.err)
		}
		return nil, err
	}
	if reply.XML == "" {
		return nil, fail(ExitNotReady, "the agent has no XML of %s yet. Fix: ask again in a second", arg)
	}
	return []byte(reply.XML), nil
}

// examine reads a domain's XML and looks for conflicts with the VMs that run.
func (c *command) examine(ctx context.Context, xml []byte, conf config.Config) source.Result {
	r := source.Load(xml, conf, c.Dirs.Config)
	if !r.Annotated || len(r.Problems.Fatal()) > 0 {
		return r
	}
	pools, errs := (&spool.Spool{Dirs: c.Dirs}).PreviewPools(conf, c.Now())
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(c.Stderr, "slash32: what comes from a pool is not as it will be: "+oneLine(err.Error())+". Fix: use sudo")
	}
	vm, found := pools.Resolve(r.VM)
	r.VM, r.Problems = vm, append(r.Problems, found...)
	others, err := c.others(r.Domain, conf)
	if err != nil {
		fmt.Fprintln(c.Stderr, "slash32: not compared with all running VMs: "+oneLine(err.Error())+". Fix: use sudo")
	}
	r.Problems = append(r.Problems, intent.Conflicts(r.VM, others)...)
	if len(r.VM.Ports()) > 0 {
		listeners, err := c.Listeners(ctx)
		if err != nil {
			fmt.Fprintln(c.Stderr, "slash32: forwarded ports are not compared with those that the host listens on: "+oneLine(err.Error()))
		}
		r.Problems = append(r.Problems, intent.Shadowed(r.VM, listeners)...)
	}
	return r
}

// others is the VMs that the run directory knows to run, without d itself. An
// error says that some are missing.
func (c *command) others(d annotation.Domain, conf config.Config) ([]intent.VM, error) {
	s := &spool.Spool{Dirs: c.Dirs}
	ids, err := s.VMs()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var vms []intent.VM
	var errs error
	for _, id := range ids {
		decl, err := s.Declaration(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		// A file that was not defined yet may have no UUID.
		if decl.UUID == d.UUID || d.UUID == uuid.Nil && decl.Name == d.Name || !decl.Live(c.Now(), false) {
			continue
		}
		if r := source.Load([]byte(decl.XML), conf, c.Dirs.Config); r.Annotated && len(r.Problems.Fatal()) == 0 {
			vms = append(vms, r.VM)
		}
	}
	return vms, errs
}

// planJSON is what "plan -j" prints.
type planJSON struct {
	State   state.State       `json:"state"`
	Binding responder.Binding `json:"binding"`
}

func (c *command) plan(ctx context.Context, args []string) error {
	conf, ps := config.Load(c.Dirs.Config)
	conf, err := c.Dirs.Tables(conf)
	if err != nil {
		return fail(ExitError, "%w", err)
	}
	xml, err := c.xml(ctx, args[0])
	if err != nil {
		return err
	}
	r := c.examine(ctx, xml, conf)
	ps = append(ps, r.Problems...)
	fmt.Fprint(c.Stderr, text(ps))
	switch {
	case len(ps.Fatal()) > 0:
		return &failure{code: ExitError}
	case !r.Annotated:
		return fail(ExitError, "%s is not annotated: slash32 leaves it alone. Fix: see slash32-annotation(7)", oneLine(r.Domain.Name))
	}
	facts, err := c.Facts(ctx, plan.Interfaces(conf)...)
	if err != nil {
		return fail(ExitError, "read the host's uplinks and resolvers: %w", err)
	}
	fmt.Fprint(c.Stderr, text(append(facts.Lacking([]intent.VM{r.VM}, conf), facts.Closed(r.VM)...)))
	d := plan.Build([]intent.VM{r.VM}, conf, facts)
	if c.json {
		return c.printJSON(planJSON{d.State, d.Bindings[r.VM.UUID]})
	}
	return c.print(fmt.Sprint(d.State))
}
