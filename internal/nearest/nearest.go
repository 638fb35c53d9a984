// Package nearest finds the known word that a mistyped one most likely means.
package nearest

import "strings"

// Of returns the candidate that a mistyped word most likely means, or an empty
// string: at most a third of its letters may differ. As comparing takes time, words longer
// than any identifier have no match, and only some of very many candidates are compared.
func Of(word string, candidates []string) string {
	if len(word) > maxWord {
		return ""
	}
	best, bestDistance := "", len(word)/3+1
	compared := 0 // pairs of letters
	for _, c := range candidates {
		if max(len(c)-len(word), len(word)-len(c)) > bestDistance {
			continue // the lengths alone differ too much
		}
		if compared += len(word) * len(c); compared > maxCompared {
			break
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d <= bestDistance && d < len(c) {
			if d < bestDistance || best == "" {
				best, bestDistance = c, d
			}
		}
	}
	return best
}

// maxWord is the length of the longest word that is compared, in bytes. No known key or
// name is longer.
const maxWord = 76

// maxCompared is the number of pairs of letters that a search compares: enough for
// thousands of candidates, unless they are very long.
const maxCompared = 1 << 20

// distance returns the Levenshtein distance: the least number of letters to insert, delete
// or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
