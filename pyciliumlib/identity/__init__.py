"""Who is who: labels, numeric identities, their allocation, and the ipcache."""
