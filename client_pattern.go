// client_pattern.go is the client's patterns: those that choose what a sync leaves
// alone, which are rsync's simple ones, and those that name files on the box. It is a
// file of its own because they are the client's: the server's patterns (dir.go) are
// ftp's, and bounded against whoever sends them.

package main

import (
	"strings"
	"unicode/utf8"
)

// A treeRule is an --include or an --exclude.
type treeRule struct {
	include  bool
	pattern  string // without the slashes that say where and what
	anchored bool   // it means names from the top
	whole    bool   // it has a "/" or "**" inside, and is compared with more than the last part
	dirs     bool   // it means directories alone
	tree     bool   // it ended in "/***": a directory, and everything in it
}

// parseTreeRule reads a pattern as rsync's simple ones: "*" is anything but "/", "**"
// anything, "?" one character, "[a-z]" one of these, a backslash takes the next
// character as it is. "/" in front means the top of the tree; "/" behind directories.
// A pattern without another "/" or "**" is compared with the last part of a name, others
// with as many parts as fit. The error is of usage.
func parseTreeRule(include bool, pattern string) (treeRule, error) {
	r := treeRule{include: include, pattern: pattern}
	r.pattern, r.anchored = cutPrefix(r.pattern, "/")
	if r.pattern, r.tree = strings.CutSuffix(r.pattern, "/***"); !r.tree {
		r.pattern, r.dirs = strings.CutSuffix(r.pattern, "/")
	}
	r.whole = hasText(r.pattern, "/") || hasText(r.pattern, "**")
	if r.pattern == "" {
		return r, usageErr("the pattern %q has no name in it; write one as '*.tmp' or /cache/", pattern)
	}
	if hasText(r.pattern, "[:") {
		return r, usageErr("the pattern %q has a named class; write the letters, as [a-z]", pattern)
	}
	if !closedSets(r.pattern) {
		return r, usageErr("the pattern %q has a [ without ]; write \\[ for the letter", pattern)
	}
	return r, nil
}

// closedSets tells whether every set of a pattern ends.
func closedSets(pattern string) bool {
	for len(pattern) > 0 {
		switch {
		case pattern[0] == '\\' && len(pattern) > 1:
			pattern = pattern[2:]
		case pattern[0] == '[':
			_, rest, ok := matchSet(pattern, 'x')
			if !ok {
				return false
			}
			pattern = rest
		default:
			pattern = pattern[1:]
		}
	}
	return true
}

// matches tells whether the rule means a name, which is from the top of the tree.
func (r *treeRule) matches(name string, dir bool) bool {
	if r.tree {
		if r.anchored {
			return dir && matchPath(r.pattern, name) || matchPath(r.pattern+"/**", name)
		}
		return dir && matchTail(r.pattern, name) || matchTail(r.pattern+"/**", name)
	}
	switch {
	case r.dirs && !dir:
		return false
	case r.anchored:
		return matchPath(r.pattern, name)
	case r.whole:
		return matchTail(r.pattern, name)
	}
	_, base := splitName(name)
	return matchPath(r.pattern, base)
}

// matchTail tells whether pattern means name or what is behind one of its slashes.
func matchTail(pattern, name string) bool {
	for {
		if matchPath(pattern, name) {
			return true
		}
		i := strings.IndexByte(name, '/')
		if i < 0 {
			return false
		}
		name = name[i+1:]
	}
}

// treeRules are all of them, in the order in which they were given.
type treeRules []treeRule

// excluded tells whether a name is to be left alone: the first rule that means it
// counts, and no rule means that it is not. What is in an excluded directory is not asked for.
func (rules treeRules) excluded(name string, dir bool) bool {
	for i := range rules {
		if rules[i].matches(name, dir) {
			return !rules[i].include
		}
	}
	return false
}

// globMatches tells whether name is one that a shell's pattern means: "*", "?" and
// "[a-z]" part for part, and a dot in front only if the pattern has it.
func globMatches(pattern, name string) bool {
	p, n := pattern, name
	for {
		if beginsWith(n, ".") && !beginsWith(p, ".") && !beginsWith(p, `\.`) {
			return false
		}
		i, k := strings.IndexByte(n, '/'), strings.IndexByte(p, '/')
		if i < 0 || k < 0 {
			break
		}
		n, p = n[i+1:], p[k+1:]
	}
	return matchParts(pattern, name, false)
}

// matchPath tells whether pattern, in which "**" means "/" too, means all of name.
func matchPath(pattern, name string) bool { return matchParts(pattern, name, true) }

// matchParts compares without recursion. Where it fails behind a star, that star takes
// one character more. It is enough to come back to the last "*" and the last "**":
// what an earlier one could take besides, the last one can take as well.
func matchParts(pattern, name string, deep bool) bool {
	type retry struct{ pattern, name string }
	var star, stars *retry
	var starAt, starsAt retry
	for {
		switch {
		case deep && beginsWith(pattern, "**"):
			pattern = strings.TrimLeft(pattern, "*")
			starsAt = retry{pattern, name}
			star, stars = nil, &starsAt
			continue
		case beginsWith(pattern, "*"):
			for pattern = pattern[1:]; !deep && beginsWith(pattern, "*"); {
				pattern = pattern[1:]
			}
			starAt = retry{pattern, name}
			star = &starAt
			continue
		case pattern == "" && name == "":
			return true
		case pattern != "" && name != "":
			if p, n, ok := matchOne(pattern, name); ok {
				pattern, name = p, n
				continue
			}
		}
		switch {
		case star != nil && star.name != "" && star.name[0] != '/':
			star.name = afterRune(star.name)
			pattern, name = star.pattern, star.name
		case stars != nil && stars.name != "":
			stars.name = afterRune(stars.name)
			star = nil
			pattern, name = stars.pattern, stars.name
		default:
			return false
		}
	}
}

func afterRune(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return s[n:]
}

// matchOne compares one character of both.
func matchOne(pattern, name string) (p, n string, ok bool) {
	c, size := utf8.DecodeRuneInString(name)
	n = name[size:]
	switch {
	case pattern[0] == '?':
		return pattern[1:], n, c != '/'
	case pattern[0] == '[':
		in, rest, closed := matchSet(pattern, c)
		if closed {
			return rest, n, in && c != '/'
		}
	case pattern[0] == '\\' && len(pattern) > 1:
		pattern = pattern[1:]
	}
	if len(pattern) < size || pattern[:size] != name[:size] { // bytes, as names need not be UTF-8
		return "", "", false
	}
	return pattern[size:], n, true
}

// matchSet tells whether c is in the set that pattern begins with; it is not closed
// if that never ends.
func matchSet(pattern string, c rune) (in bool, rest string, closed bool) {
	p := pattern[1:]
	not := beginsWith(p, "!") || beginsWith(p, "^")
	if not {
		p = p[1:]
	}
	for first := true; p != ""; first = false {
		if p[0] == ']' && !first {
			return in != not, p[1:], true
		}
		var low, high rune
		if low, p = setRune(p); p == "" {
			break
		}
		high = low
		if p[0] == '-' && len(p) > 1 && p[1] != ']' {
			high, p = setRune(p[1:])
		}
		in = in || low <= c && c <= high
	}
	return false, "", false
}

func setRune(p string) (rune, string) {
	if p[0] == '\\' && len(p) > 1 {
		p = p[1:]
	}
	c, n := utf8.DecodeRuneInString(p)
	return c, p[n:]
}
