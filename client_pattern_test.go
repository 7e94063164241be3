package main

import (
	"strings"
	"testing"
)

func TestTreeRules(t *testing.T) {
	for _, c := range []struct {
		rules string // "+ pattern" or "- pattern", one a line
		name  string // a directory if it ends in "/"
		want  bool   // excluded
	}{
		{"", "a", false},
		{"- *.tmp", "a.tmp", true},
		{"- *.tmp", "dir/a.tmp", true},
		{"- *.tmp", "a.tmp.gz", false},
		{"- /a.tmp", "a.tmp", true},
		{"- /a.tmp", "dir/a.tmp", false},
		{"- /dir/a.tmp", "dir/a.tmp", true},
		{"- cache/", "cache/", true},
		{"- cache/", "x/cache/", true},
		{"- cache/", "cache", false},
		{"- /cache/", "x/cache/", false},
		{"- b/c", "a/b/c", true},
		{"- b/c", "a/xb/c", false},
		{"- b/c", "b/c/d", false},
		{"- a*c", "a/c", false},
		{"- a**c", "a/c", true},
		{"- a**c", "x/a/b/c", true},
		{"- /a/**/z", "a/b/c/z", true},
		{"- /a/**/z", "a/z", false}, // as rsync has it
		{"- **/x", "a/b/x", true},
		{"- **/x", "x", false},
		{"- dir/***", "dir/", true},
		{"- dir/***", "dir", false},
		{"- dir/***", "dir/a/b", true},
		{"- /dir/***", "x/dir/", false},
		{"- ?", "é", true},
		{"- ?", "ab", false},
		{"- a?b", "a/b", false},
		{"- [a-c]x", "bx", true},
		{"- [!a-c]x", "bx", false},
		{"- [^a-c]x", "éx", true},
		{"- []x]", "]", true},
		{"- [\\]x]", "]", true},
		{"- \\*", "*", true},
		{"- \\*", "a", false},
		{"- [a-]", "-", true},
		{"+ *.jpg\n- *", "a.jpg", false},
		{"+ *.jpg\n- *", "a.png", true},
		{"+ */\n+ *.jpg\n- *", "dir/", false},
		{"- a*\n+ *", "abc", true},
		{"+ abc\n- a*", "abc", false},
		{"- *", ".hidden", true},
	} {
		var rules treeRules
		for line := range strings.Lines(c.rules) {
			r, err := parseTreeRule(line[0] == '+', strings.TrimSuffix(line[2:], "\n"))
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
		name, dir := strings.CutSuffix(c.name, "/")
		if got := rules.excluded(name, dir); got != c.want {
			t.Errorf("%q: %q excluded is %v", c.rules, c.name, got)
		}
	}
	for _, bad := range []string{"", "/", "a[b", "[", "[]", "[[:alpha:]]"} {
		if _, err := parseTreeRule(false, bad); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestGlobMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.jpg", "a.jpg", true},
		{"*.jpg", ".a.jpg", false},
		{".*.jpg", ".a.jpg", true},
		{`\.*`, ".a", true},
		{"?a", ".a", false},
		{"[.]a", ".a", false},
		{"photos/*", "photos/a", true},
		{"photos/*", "photos/.a", false},
		{"photos/*", "photos/a/b", false},
		{"*/*.jpg", "photos/a.jpg", true},
		{"*/*.jpg", ".photos/a.jpg", false},
		{"**", "a/b", false},
		{"a**b", "axb", true},
		{"a[", "a[", true},
		{"a[", "ab", false},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"a\xff*", "a\xffb", true},
		{"*[!é]", "é", false},
	} {
		if got := globMatches(c.pattern, c.name); got != c.want {
			t.Errorf("%q %q: %v", c.pattern, c.name, got)
		}
	}
}

// modelMatch is matchPath, written for the eye.
func modelMatch(p, n string) bool {
	switch {
	case p == "":
		return n == ""
	case strings.HasPrefix(p, "**"):
		p = strings.TrimLeft(p, "*")
		for i := 0; i <= len(n); i++ {
			if modelMatch(p, n[i:]) {
				return true
			}
		}
		return false
	case p[0] == '*':
		for i := 0; i <= len(n); i++ {
			if modelMatch(p[1:], n[i:]) {
				return true
			}
			if i < len(n) && n[i] == '/' {
				return false
			}
		}
		return false
	case n == "":
		return false
	case p[0] == '?':
		return n[0] != '/' && modelMatch(p[1:], n[1:])
	case strings.HasPrefix(p, "[ab]"):
		return (n[0] == 'a' || n[0] == 'b') && modelMatch(p[4:], n[1:])
	}
	return p[0] == n[0] && modelMatch(p[1:], n[1:])
}

// TestMatchModel compares every short pattern with every short name.
func TestMatchModel(t *testing.T) {
	every := func(parts []string, most int) []string {
		all := []string{""}
		for from := 0; most > 0; most-- {
			to := len(all)
			for _, s := range all[from:to] {
				for _, p := range parts {
					all = append(all, s+p)
				}
			}
			from = to
		}
		return all
	}
	names := every([]string{"a", "b", "/"}, 4)
	for _, p := range every([]string{"a", "*", "?", "/", "[ab]"}, 5) {
		for _, n := range names {
			if got, want := matchPath(p, n), modelMatch(p, n); got != want {
				t.Fatalf("%q %q: %v, model says %v", p, n, got, want)
			}
		}
	}
}

func FuzzMatchPath(f *testing.F) {
	f.Add("a*b**c/*d", "a/b/c/d")
	f.Add("[a-z]?\\x[!b]", "qé/")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 40 || len(name) > 200 {
			return
		}
		matchPath(pattern, name) // ends, and does not panic
		globMatches(pattern, name)
		if r, err := parseTreeRule(false, pattern); err == nil {
			r.matches(name, true)
		}
	})
}
