package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

// Reader reads configuration. The zero value is what the host uses.
type Reader struct {
	// IPRoute2 are the directories in which rt_tables and rt_tables.d/*.conf
	// give routing tables names, the first to have a name wins. Nil stands for
	// /etc/iproute2 and /usr/share/iproute2.
	IPRoute2 []string
}

// Load reads dir/slash32.yaml and then dir/conf.d/*.yaml in the order of their
// names. A later file changes the keys it has, per network, and leaves the
// others. No file at all gives Default.
func Load(dir string) (Config, problem.List) { return Reader{}.Load(dir) }

// Load is the function of the same name, with the reader's table names.
func (r Reader) Load(dir string) (Config, problem.List) {
	c := Default()
	var ps problem.List
	more, err := files(filepath.Join(dir, "conf.d"), ".yaml")
	if err != nil {
		ps = append(ps, problem.Problem{Code: problem.EConfig, File: filepath.Join(dir, "conf.d"), What: "the directory cannot be read: " + err.Error(), Fix: "make it readable, or remove it"})
	}
	for _, file := range append([]string{filepath.Join(dir, "slash32.yaml")}, more...) {
		b, err := read(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			ps = append(ps, problem.Problem{Code: problem.EConfig, File: file, What: "the file cannot be read: " + err.Error(), Fix: "make it a readable file of at most 1 MiB, or remove it"})
		default:
			ps = append(ps, r.merge(&c, file, b)...)
		}
	}
	return c, append(ps, c.topology(filepath.Join(dir, "slash32.yaml"))...)
}

// files lists the files in a directory whose names end in suffix, sorted; a
// directory that is not there has none. Hidden ones (an editor's) don't count.
func files(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// DomainFile reads the file that stands in for a domain's metadata:
// dir/domains.d/<uuid>.yaml, else dir/domains.d/<name>.yaml. Without one, b is
// nil and err too. A name that is not safe as a file's has no file.
func DomainFile(dir, name, uuid string) (path string, b []byte, err error) {
	for _, base := range []string{uuid, name} {
		if !names.Safe(base) {
			continue
		}
		path := filepath.Join(dir, "domains.d", base+".yaml")
		b, err := read(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return path, nil, fmt.Errorf("read the settings of a domain: %w", err)
		default:
			return path, b, nil
		}
	}
	return "", nil, nil
}

// read reads a regular file of at most yamltree.MaxSize bytes. b is never nil
// without an error.
func read(path string) ([]byte, error) {
	// A FIFO would block the open for ever.
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, yamltree.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > yamltree.MaxSize {
		return nil, fmt.Errorf("%s has more than %d bytes", path, yamltree.MaxSize)
	}
	return b, nil
}

// table looks a routing table's name up.
func (r Reader) table(name string) (t Table, ok bool) {
	r.tables(func(n Table, s string) bool {
		if s == name {
			t, ok = n, true
		}
		return !ok
	})
	return t, ok
}

// TableNames are the routing tables that have a name.
func (r Reader) TableNames() map[Table]string {
	names := map[Table]string{}
	r.tables(func(t Table, name string) bool {
		if names[t] == "" {
			names[t] = name
		}
		return true
	})
	return names
}

// tables calls f for the names of routing tables until it returns false. Files
// that are not there or can't be read have no names.
func (r Reader) tables(f func(Table, string) bool) {
	dirs := r.IPRoute2
	if dirs == nil {
		dirs = []string{"/etc/iproute2", "/usr/share/iproute2"}
	}
	for _, dir := range dirs {
		more, err := files(filepath.Join(dir, "rt_tables.d"), ".conf")
		if err != nil {
			more = nil // no names there, as below
		}
		for _, file := range append([]string{filepath.Join(dir, "rt_tables")}, more...) {
			b, err := read(file)
			if err != nil {
				continue
			}
			for l := range strings.Lines(string(b)) {
				l, _, _ = strings.Cut(l, "#")
				w := strings.Fields(l)
				if len(w) != 2 {
					continue
				}
				if n, err := strconv.ParseUint(w[0], 0, 32); err == nil && !f(Table(n), w[1]) {
					return
				}
			}
		}
	}
}
