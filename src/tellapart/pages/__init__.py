"""What the pages that tellapart writes share: styles, pictures inside the page, the way a template is filled."""
