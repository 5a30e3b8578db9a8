package annotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/yamltree"
)

// ParseYAML reads a file that stands in for a domain's metadata. It has the
// names of the XML: the attributes of <network> are keys; "interface" is a list
// of mappings with the attributes of <interface> and its elements as keys. An
// element may be written as its main value, and several as a list:
//
//	hostname: web1
//	interface:
//	  - mac: 52:54:00:ab:cd:01
//	    address: [203.0.113.42, "2001:db8:1::42"]
//	    prefix:
//	      - {net: "2001:db8:1:a0::/60", mode: delegate}
//
// The problems name file. The Network is nil when the file is not a mapping.
func ParseYAML(file string, b []byte) (*Network, problem.List) {
	name := func(ps problem.List) problem.List {
		for i := range ps {
			ps[i].File = file
		}
		return ps
	}
	tree, err := yamltree.Parse(b)
	if err != nil {
		line := 0
		text := err.Error()
		var e *yamltree.Error
		if errors.As(err, &e) {
			line, text = e.Line, e.Text
		}
		return nil, name(problem.List{{Code: problem.EXML, Line: line, What: "the file cannot be read as YAML: " + text, Fix: "write key: value, indented by spaces"}})
	}
	if tree.Kind != yamltree.Map {
		return nil, name(problem.List{{Code: problem.EXML, Line: tree.Line, What: "the file holds " + tree.Kind.String() + " where keys are expected", Fix: "write key: value, like ipv4: 203.0.113.42"}})
	}
	t := &translator{}
	root := t.network(tree)
	n, ps := interpret(root, yamlForm)
	n.File = file
	ps = append(t.problems, ps...)
	slices.SortStableFunc(ps, func(a, b problem.Problem) int { return a.Line - b.Line })
	return n, name(ps[:min(len(ps), maxProblems)])
}

// translator turns the tree of a YAML file into what the XML reader makes.
type translator struct {
	elements int
	problems problem.List
}

func (t *translator) bad(line int, what, fix string) {
	if len(t.problems) < maxProblems {
		t.problems = append(t.problems, problem.Problem{Code: problem.EValue, Line: line, What: what, Fix: fix})
	}
}

func (t *translator) network(tree yamltree.Node) element {
	e := element{name: "network", line: tree.Line}
	for _, kv := range tree.Entries {
		if kv.Key != "interface" {
			t.attr(&e, kv, slices.Contains([]string{"ipv4", "ipv6", "dns", "search", "ntp"}, kv.Key))
			continue
		}
		for _, v := range many(kv.Value) {
			if v.Kind != yamltree.Map {
				t.bad(v.Line, "interface holds "+v.Kind.String()+" where keys are expected", "write a list of mappings, like interface: [{mac: ..., address: ...}]")
				continue
			}
			if t.room(v.Line) {
				e.kids = append(e.kids, t.iface(v))
			}
		}
	}
	return e
}

func (t *translator) iface(v yamltree.Node) element {
	e := element{name: "interface", line: v.Line}
	for _, kv := range v.Entries {
		main := leafAttrs[kv.Key]
		if main == nil {
			t.attr(&e, kv, false)
			continue
		}
		for _, v := range many(kv.Value) {
			if !t.room(v.Line) {
				break
			}
			k := element{name: kv.Key, line: v.Line}
			switch v.Kind {
			case yamltree.Scalar:
				k.attrs = []attr{{main[0], v.Text, v.Line}}
			case yamltree.Map:
				for _, kv := range v.Entries {
					t.attr(&k, kv, false)
				}
			default:
				t.bad(kv.Line, fmt.Sprintf("key %s holds %s", problem.Quote(kv.Key), v.Kind), "give it a value or remove it")
				continue
			}
			e.kids = append(e.kids, k)
		}
	}
	return e
}

// attr makes a key with a value an attribute; a list only where the attribute
// takes one.
func (t *translator) attr(e *element, kv yamltree.Entry, list bool) {
	switch {
	case kv.Value.Kind == yamltree.Scalar:
		e.attrs = append(e.attrs, attr{kv.Key, kv.Value.Text, kv.Line})
	case kv.Value.Kind == yamltree.List && list:
		var vs []string
		for _, v := range kv.Value.Items {
			if v.Kind != yamltree.Scalar {
				t.bad(v.Line, fmt.Sprintf("key %s holds %s in its list", problem.Quote(kv.Key), v.Kind), "write values only")
				return
			}
			vs = append(vs, v.Text)
		}
		e.attrs = append(e.attrs, attr{kv.Key, strings.Join(vs, " "), kv.Line})
	case slices.Contains(networkAttrs, kv.Key) || slices.Contains(interfaceAttrs, kv.Key):
		t.bad(kv.Line, fmt.Sprintf("key %s holds %s where a value is expected", problem.Quote(kv.Key), kv.Value.Kind), "give it one value or remove it")
	default:
		// The interpreter says that it does not know the key; the value is not
		// looked at then.
		e.attrs = append(e.attrs, attr{kv.Key, kv.Value.Kind.String(), kv.Line})
	}
}

func (t *translator) room(line int) bool {
	if t.elements++; t.elements <= maxElements {
		return true
	}
	if t.elements == maxElements+1 {
		t.bad(line, fmt.Sprintf("more than %d elements", maxElements), "remove some")
	}
	return false
}

// many is the items of a list, or the one value that is none.
func many(n yamltree.Node) []yamltree.Node {
	if n.Kind == yamltree.List {
		return n.Items
	}
	return []yamltree.Node{n}
}
